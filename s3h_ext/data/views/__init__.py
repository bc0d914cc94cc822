"""Views: recipes, policies, mixing, and the rendering of their pixels."""
