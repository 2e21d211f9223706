"""The REST API, put together from the routes of all other apps; nothing imports it."""
