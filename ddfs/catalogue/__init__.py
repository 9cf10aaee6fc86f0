"""What this host knows: templates, the contents behind them, and where those are stored.

The only home of SQLAlchemy and Alembic. Rows live in ``catalogue.db``
(:class:`ddfs.catalogue.catalogue.Catalogue`), the first bytes of images in files
(:class:`ddfs.catalogue.heads.HeadStore`), both in the state directory. All of it is
synchronous and meant for threads.
"""
