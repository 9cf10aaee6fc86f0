"""Metalink documents: text in, manifests out (RFC 5854 and Metalink 3.0), and back.

Pure: no clock, no network, and of files only what :func:`write.describe_file` hashes.

====================  =====================================================================
``read.py``           :func:`read.parse`, :func:`read.select`: the way in
``write.py``          a manifest as a version 4 document; a local file as a manifest
``walk.py``           the XML: defused, capped, without a tree; calls a grammar
``v4.py``, ``v3.py``  the two grammars: which element means what
``draft.py``          what a document says about one file, and its judgement
``hashes.py``         which whole-file and piece hashes are usable
``mirrors.py``        addresses, priorities and the order of mirrors
``names.py``          which file names are refused
``limits.py``         every cap, with its reason
====================  =====================================================================

How lenient: what real publishers do against the specifications is read (dashed hash names
in version 3, blanks around values, broken dates, preferences below 1). What makes the
document ambiguous or dangerous is refused: two different hashes of one kind, two files of
one name, names that leave their folder, document type declarations.
"""
