"""READS results: statistics, tables, plots and the page. Needs neither torch nor transformers."""
