"""Serves one WSGI application: `serve.py MODULE ADDRESS PORT`; and the filter that stands where Keystone's would.

Every caller is the administrator. That is for a lab that nobody else reaches.
"""

import importlib
import sys

# Requests under way: API calls wait for RPC to the computes.
THREADS = 8
IDENTITY = {
    "HTTP_X_USER_ID": "lab",
    "HTTP_X_PROJECT_ID": "lab",
    "HTTP_X_ROLES": "admin,member,reader,service",
    "HTTP_X_AUTH_TOKEN": "admin",
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
}


def administrator(_global_configuration, **_local_configuration):
    """A filter factory of paste."""

    def around(application):
        def call(environ, start_response):
            environ.update(IDENTITY)
            return application(environ, start_response)

        return call

    return around


def main() -> None:
    """Serves until it is killed."""
    module, address, port = sys.argv[1:]
    # Some of the services read the command line when they are imported.
    sys.argv = sys.argv[:1]
    from waitress import serve

    serve(importlib.import_module(module).application, host=address, port=int(port), threads=THREADS, ident=None)


if __name__ == "__main__":
    main()
