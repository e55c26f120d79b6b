"""Ways to adapt a model, trained one after another under one budget and set side by side."""
