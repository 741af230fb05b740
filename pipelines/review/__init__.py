"""`review`: masks that people look at go out as packages for annotation tools, and come back as decisions.

A package is read and written in three layouts by `coco`, `cvat` and `label_studio`; `package` knows what all have in
common and what comes of a package that came back; `agreement` says how far several reviewers agree.
"""
