"""New folders of backbones from others: converted from another layout, or composed of parts."""
