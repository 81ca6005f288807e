"""The built-in rooms, rendered by torch: import this folder only where torch is needed anyway."""
