#!/bin/sh
# One test sends requests through a real nginx with the proxy's configuration; install it where we may, else say how.
set -eu
{ command -v nginx || ls /usr/sbin/nginx; } > /dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then
    echo "Installing nginx for the test of the proxy …"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light > /dev/null
else
    echo "The test of the proxy needs nginx: sudo apt-get install nginx-light" >&2
    exit 1
fi
