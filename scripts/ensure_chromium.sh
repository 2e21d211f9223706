#!/bin/sh
# The browser tests drive Debian's Chromium; install it where we may, else say how.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then
    echo "Installing Chromium for the browser tests …"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
else
    echo "The browser tests need Chromium: sudo apt-get install chromium" >&2
    exit 1
fi
