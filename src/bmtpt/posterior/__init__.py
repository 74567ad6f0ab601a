"""The posterior over soft prompts: kernels, the SVGD direction, and how to tell whether it worked."""
