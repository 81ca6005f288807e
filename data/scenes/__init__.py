"""The built-in rooms, rendered by torch. Importing this package imports torch."""
