"""A result as tables, HTML, Markdown, CSV and charts."""
