"""From pages to shards: crawl, download, run, report."""
