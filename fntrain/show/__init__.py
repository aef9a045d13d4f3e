"""What people look at: progress, summaries, descriptions, pictures."""
