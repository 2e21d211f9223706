# Two images from one file: `web` (no torch, small) and `engine` (web plus torch and the models' libraries).
#   docker build --target web -t workbench-web .
#   docker build --target engine -t workbench-engine .

FROM node:20-bookworm-slim AS frontend
WORKDIR /src/frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY frontend ./
RUN npm run build

FROM python:3.11-slim-bookworm AS web
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 DJANGO_SETTINGS_MODULE=workbench.settings.prod WORKBENCH_DATA_DIR=/data
WORKDIR /app
RUN useradd --create-home --uid 1000 workbench && mkdir /data && chown workbench /data
COPY pyproject.toml README.md LICENSE manage.py ./
COPY locks locks
COPY scripts/install.sh scripts/install.sh
COPY microscope microscope
COPY worker worker
COPY workbench workbench
COPY apps apps
RUN sh scripts/install.sh python web && pip install --no-deps --no-build-isolation -e .
COPY --from=frontend /src/frontend/dist frontend/dist
USER workbench
EXPOSE 8000
CMD ["python", "-m", "workbench.web", "-b", "0.0.0.0", "-p", "8000", "--no-server-name", "workbench.asgi:application"]

FROM web AS engine
USER root
# TORCH=cpu takes the build without CUDA where pip finds it
ARG TORCH=gpu
RUN TORCH=$TORCH sh scripts/install.sh python torch engine
USER workbench
CMD ["celery", "-A", "workbench", "worker", "--loglevel", "info"]
