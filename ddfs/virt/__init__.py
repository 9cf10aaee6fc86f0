"""libvirt's domains, and its storage pool on the mount. The only home of libvirt-python.

Nothing here is needed for a template to become complete: everything works while libvirtd is
down, and nobody who answers a hook waits for anything here.
"""
