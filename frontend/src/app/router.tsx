/** Every address of the application. Pages are loaded when they are first visited. */

import {
  createRootRouteWithContext, createRoute, createRouter, lazyRouteComponent, Outlet, redirect,
} from "@tanstack/react-router";
import type { QueryClient } from "@tanstack/react-query";
import { projectQuery } from "@/api/projects";
import { meQuery } from "@/api/session";
import { Failed, Missing, Pending } from "@/app/fallbacks";
import { queryClient } from "@/app/queryClient";
import { Shell } from "@/app/Shell";
import * as search from "@/app/search";
import { Login } from "@/pages/Login";

const root = createRootRouteWithContext<{ queryClient: QueryClient }>()({
  component: Outlet,
  notFoundComponent: Missing,
});

const login = createRoute({ getParentRoute: () => root, path: "/login", validateSearch: search.login, component: Login });

const signUp = createRoute({
  getParentRoute: () => root,
  path: "/sign-up",
  validateSearch: search.login,
  component: lazyRouteComponent(() => import("@/pages/entry/SignUp"), "SignUp"),
});

const forgotten = createRoute({
  getParentRoute: () => root,
  path: "/password/reset",
  component: lazyRouteComponent(() => import("@/pages/entry/Password"), "ForgottenPassword"),
});

const reset = createRoute({
  getParentRoute: () => root,
  path: "/password/reset/$key",
  component: lazyRouteComponent(() => import("@/pages/entry/Password"), "NewPassword"),
});

const verify = createRoute({
  getParentRoute: () => root,
  path: "/verify-email/$key",
  component: lazyRouteComponent(() => import("@/pages/entry/VerifyEmail"), "VerifyEmail"),
});

const invitation = createRoute({
  getParentRoute: () => root,
  path: "/invitations/$text",
  component: lazyRouteComponent(() => import("@/pages/entry/Invitation"), "InvitationPage"),
});

/** Every page that needs a sign-in. */
const signedIn = createRoute({
  getParentRoute: () => root,
  id: "signed-in",
  component: Shell,
  beforeLoad: async ({ context, location }) => {
    const me = await context.queryClient.query(meQuery);
    if (me === null) {
      // eslint-disable-next-line @typescript-eslint/only-throw-error -- how the router is told to go elsewhere
      throw redirect({ to: "/login", search: { next: location.href } });
    }
  },
});

const projects = createRoute({
  getParentRoute: () => signedIn,
  path: "/",
  component: lazyRouteComponent(() => import("@/pages/Projects"), "Projects"),
});

const profile = createRoute({
  getParentRoute: () => signedIn,
  path: "/profile",
  component: lazyRouteComponent(() => import("@/pages/profile/Profile"), "Profile"),
});

const allJobs = createRoute({
  getParentRoute: () => signedIn,
  path: "/jobs",
  validateSearch: search.jobs,
  component: lazyRouteComponent(() => import("@/pages/jobs/Jobs"), "AllJobs"),
});

const job = createRoute({
  getParentRoute: () => signedIn,
  path: "/jobs/$job",
  component: lazyRouteComponent(() => import("@/pages/jobs/JobPage"), "JobPage"),
});

const project = createRoute({
  getParentRoute: () => signedIn,
  path: "/projects/$project",
  component: lazyRouteComponent(() => import("@/app/ProjectFrame"), "ProjectFrame"),
  loader: ({ context, params }) => context.queryClient.query(projectQuery(params.project)),
});

const home = createRoute({
  getParentRoute: () => project,
  path: "/",
  component: lazyRouteComponent(() => import("@/pages/home/Home"), "Home"),
});

const models = createRoute({
  getParentRoute: () => project,
  path: "/models",
  validateSearch: search.adding,
  component: lazyRouteComponent(() => import("@/pages/models/Models"), "Models"),
});

const recordings = createRoute({
  getParentRoute: () => project,
  path: "/recordings",
  validateSearch: search.newRecording,
  component: lazyRouteComponent(() => import("@/pages/recordings/Recordings"), "Recordings"),
});

const saes = createRoute({
  getParentRoute: () => project,
  path: "/saes",
  validateSearch: search.newSae,
  component: lazyRouteComponent(() => import("@/pages/saes/Saes"), "Saes"),
});

const importSae = createRoute({
  getParentRoute: () => project,
  path: "/saes/import",
  component: lazyRouteComponent(() => import("@/pages/saes/ImportSae"), "ImportSae"),
});

const sae = createRoute({
  getParentRoute: () => project,
  path: "/saes/$sae",
  component: lazyRouteComponent(() => import("@/pages/saes/SaePage"), "SaePage"),
});

const compare = createRoute({
  getParentRoute: () => project,
  path: "/compare",
  validateSearch: search.compare,
  component: lazyRouteComponent(() => import("@/pages/saes/Compare"), "Compare"),
});

const features = createRoute({
  getParentRoute: () => project,
  path: "/saes/$sae/features",
  validateSearch: search.features,
  component: lazyRouteComponent(() => import("@/pages/features/Features"), "Features"),
});

const feature = createRoute({
  getParentRoute: () => project,
  path: "/features/$feature",
  component: lazyRouteComponent(() => import("@/pages/features/FeaturePage"), "FeaturePage"),
});

const patches = createRoute({
  getParentRoute: () => project,
  path: "/patches",
  validateSearch: search.patches,
  component: lazyRouteComponent(() => import("@/pages/patches/Patches"), "Patches"),
});

const lab = createRoute({
  getParentRoute: () => project,
  path: "/lab",
  validateSearch: search.lab,
  component: lazyRouteComponent(() => import("@/pages/lab/Lab"), "Lab"),
});

const graphs = createRoute({
  getParentRoute: () => project,
  path: "/graphs",
  validateSearch: search.graphs,
  component: lazyRouteComponent(() => import("@/pages/graphs/Graphs"), "Graphs"),
});

const newGraph = createRoute({
  getParentRoute: () => project,
  path: "/graphs/new",
  validateSearch: search.newGraph,
  component: lazyRouteComponent(() => import("@/pages/graphs/NewGraph"), "NewGraph"),
});

const graph = createRoute({
  getParentRoute: () => project,
  path: "/graphs/$graph",
  validateSearch: search.graph,
  component: lazyRouteComponent(() => import("@/pages/graphs/SavedGraph"), "SavedGraph"),
});

const projectJobs = createRoute({
  getParentRoute: () => project,
  path: "/jobs",
  validateSearch: search.jobs,
  component: lazyRouteComponent(() => import("@/pages/jobs/Jobs"), "ProjectJobs"),
});

const members = createRoute({
  getParentRoute: () => project,
  path: "/members",
  component: lazyRouteComponent(() => import("@/pages/Members"), "Members"),
});

const tree = root.addChildren([
  login,
  signUp,
  forgotten,
  reset,
  verify,
  invitation,
  signedIn.addChildren([
    projects,
    profile,
    allJobs,
    job,
    project.addChildren([home, models, recordings, saes, importSae, sae, compare, features, feature, patches, lab, graphs, newGraph, graph, projectJobs, members]),
  ]),
]);

export const router = createRouter({
  routeTree: tree,
  context: { queryClient },
  defaultPreload: "intent",
  defaultPendingComponent: Pending,
  defaultErrorComponent: Failed,
  defaultNotFoundComponent: Missing,
  scrollRestoration: true,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
