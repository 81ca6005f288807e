"""Reports: tables, HTML, Markdown, CSV and charts."""
