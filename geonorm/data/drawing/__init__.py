"""What ``geonorm.data.drawn`` draws with: cities, streets, roofs, trees, light."""
