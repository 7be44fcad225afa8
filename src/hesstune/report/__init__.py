"""From records to one self-contained HTML page; nothing is computed here but summaries."""
