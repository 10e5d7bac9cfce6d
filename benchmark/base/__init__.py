"""What every other package needs: error sentences, checked input, files, seeds, the machine."""
