"""Models behind OpenAI's interface: an HTTP server, and the thread that decodes for it."""
