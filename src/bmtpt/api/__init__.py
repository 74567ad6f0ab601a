"""The library for scripts and notebooks; `import bmtpt` exports its names."""
