"""From files, the Hub and the catalogue to tasks."""
