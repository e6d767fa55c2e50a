"""One bounded, guarded, polite GET, used by the live crawl and the image download."""
