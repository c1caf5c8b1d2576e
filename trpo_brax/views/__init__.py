"""What a person looks at: plots, videos, pages."""
