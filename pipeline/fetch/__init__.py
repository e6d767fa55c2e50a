"""One bounded, guarded, polite GET, asynchronous: the crawler's and the downloader's only way to the web."""
