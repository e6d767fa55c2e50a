"""Pages to pairs: from archives or the live web, with robots.txt and opt-outs honoured."""
