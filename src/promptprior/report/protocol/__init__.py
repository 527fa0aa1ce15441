"""What the protocol asks of a comparison (docs/protocol.md): contrasts written down first, and what spoils claims."""
