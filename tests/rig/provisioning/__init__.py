"""The rig's downloads: Debian packages, unpacked below the cache folder."""
