"""What every room uses: errors, checks of arguments, bounded JSON files, progress, signals."""
