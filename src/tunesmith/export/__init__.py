"""Export: models in the form other tools read."""
