"""How training images and their targets are varied: crops, colour, erasing, mixing."""
