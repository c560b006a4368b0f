"""The front: the service user, in an empty jail; gevent, AUTHORIZATION. `front` is the process."""
