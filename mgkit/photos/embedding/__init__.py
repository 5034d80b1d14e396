"""Features and neighbours of pictures in a folder that grows."""
