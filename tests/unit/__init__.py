"""Without Ray or engines, without sleeping."""
