# A FastAPI application below gapless; app is the image of the Dockerfile beside this one.
#   docker build -f examples/docker/uvicorn.Dockerfile -t api .
FROM python:3.13-slim
COPY --from=app /usr/local/bin/gapless /usr/local/bin/gapless
RUN pip install --no-cache-dir fastapi "uvicorn[standard]" && useradd --system --no-create-home app
WORKDIR /srv/app
COPY . .
USER app
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["/usr/local/bin/gapless", "status"]
ENTRYPOINT ["/usr/local/bin/gapless"]
CMD ["run", "--host", "0.0.0.0", "--port", "8000", "--drain-timeout", "30s", "--", "uvicorn", "main:app", "--fd", "{fd}"]
