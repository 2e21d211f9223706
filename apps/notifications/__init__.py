"""Telling people and other systems what happened: in the application, by e-mail, by webhook."""
