"""A page in the browser, and the same as JSON over HTTP: composed search, classification with trained runs, results.

``service.py`` answers without any web code, ``web.py`` is HTTP, ``page.py`` the page.
"""
