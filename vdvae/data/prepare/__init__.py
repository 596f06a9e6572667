"""From official archives, or a folder of images, to a prepared set: the files that training reads."""
