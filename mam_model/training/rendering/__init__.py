"""The parts from which `render` builds a training picture: textures, shapes, strands, subjects and a camera."""
