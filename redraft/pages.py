"""The shell of a page of HTML that needs nothing else; what stands in it is the caller's, escaped."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
"""
"""To be formatted: the Content-Security-Policy ``policy``, ``title`` and ``style``."""
FOOT = """</body>
</html>
"""
