"""Passes over memory compiled for this processor where there is a compiler; torch does the same where there is none."""
