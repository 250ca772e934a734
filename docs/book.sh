#!/bin/sh
# mdBook has this read all pages before it makes the book. In the repository ops/ is beside docs/; in the book it is a
# folder of it, by the symbolic link here. So links from the one to the other are a step shorter there.
if [ "$1" = supports ]; then exit; fi
# What comes is a list of the settings and the book, what goes back is the book.
sed -e 's/^\[.*,{"items":/{"items":/' -e 's/]$//' -e 's|](\.\./ops/|](ops/|g' -e 's|](\.\./docs/|](../|g'
