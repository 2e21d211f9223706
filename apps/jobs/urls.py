"""Routes of jobs."""

from django.urls import path

from apps.core.views import Routes
from apps.jobs.views import JobKindsView, JobViewSet

routes = Routes()
routes.register("jobs", JobViewSet, basename="job")
urlpatterns = [path("job-kinds", JobKindsView.as_view(), name="job-kinds"), *routes.urls]
