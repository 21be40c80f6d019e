"""The explorer: a page on which one chooses codes and sees their geodesics.

The room owns the command ``geolatent explore``: what is explored (`subject`), its planes, what is
solved for and how it is stopped (`solving`, `jobs`), pictures and downloads, and the page itself
(`figures`, `layout`, `callbacks`, `server`, and in `assets` what the browser runs). It stands above
the lab, whose options and models it takes; only the command line leads into it. Dash, of the extra
``explore``, is imported by the page's modules alone: all that is solved can be had without it.
"""
