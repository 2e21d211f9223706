import { useQuery } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import { projectQuery } from "@/api/projects";
import { meQuery } from "@/api/session";
import type { Role } from "@/api/types";

/** The project the page belongs to. */
export function useProjectId(): string {
  return useParams({ from: "/signed-in/projects/$project" }).project;
}

interface Rights {
  role: Role | null;
  /** Add, change, start and delete things. */
  edit: boolean;
  /** Rename the project, manage its members. */
  manage: boolean;
}

/** What the reader may do in a project. The server decides; this only spares them buttons that would be refused. */
export function useRights(project: string): Rights {
  const { data } = useQuery(projectQuery(project));
  const { data: me } = useQuery(meQuery);
  const role = data?.role ?? null;
  const staff = me?.is_staff === true;
  return { role, edit: staff || role === "owner" || role === "editor", manage: staff || role === "owner" };
}
