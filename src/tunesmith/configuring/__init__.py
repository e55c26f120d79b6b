"""From a recipe file, the environment and key=value to checked settings that know where each value came from."""
