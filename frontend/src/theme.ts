import { createTheme, type CSSVariablesResolver, type MantineColorsTuple } from "@mantine/core";
import { cssVariables, DARK, LIGHT } from "@/science/palette";

/** The one accent: a deep blue that stays readable on both surfaces. */
const ink: MantineColorsTuple = [
  "#eaf3fb", "#d3e5f5", "#a6caea", "#76adde", "#4f94d3", "#3482c8", "#2174b9", "#155f9c", "#0f4c7f", "#083962",
];

/** Greys with a trace of blue; dark[7] is the page, dark[6] panels, dark[0] text. */
const dark: MantineColorsTuple = [
  "#e4e8ed", "#c3cad3", "#9aa4b0", "#6d7885", "#4a5460", "#343d48", "#1e242c", "#15191f", "#101317", "#0b0d10",
];

export const theme = createTheme({
  primaryColor: "ink",
  primaryShade: { light: 7, dark: 6 },
  colors: { ink, dark },
  defaultRadius: "sm",
  fontFamily: 'Inter, "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif',
  fontFamilyMonospace: 'ui-monospace, "SF Mono", "Cascadia Code", "DejaVu Sans Mono", Menlo, Consolas, monospace',
  fontSizes: { xs: "0.75rem", sm: "0.8125rem", md: "0.875rem", lg: "1rem", xl: "1.25rem" },
  headings: {
    fontWeight: "600",
    sizes: { h1: { fontSize: "1.35rem" }, h2: { fontSize: "1.05rem" }, h3: { fontSize: "0.9rem" } },
  },
  spacing: { xs: "0.4rem", sm: "0.65rem", md: "0.9rem", lg: "1.3rem", xl: "2rem" },
  focusRing: "auto",
  cursorType: "pointer",
  respectReducedMotion: true,
  autoContrast: true,
  components: {
    Button: { defaultProps: { size: "xs" } },
    TextInput: { defaultProps: { size: "sm" } },
    Select: { defaultProps: { size: "sm", allowDeselect: false } },
    Modal: { defaultProps: { closeButtonProps: { "aria-label": "Close" } }, styles: { title: { fontWeight: 600, fontSize: "1rem" } } },
    Table: { defaultProps: { verticalSpacing: 6, horizontalSpacing: 10 } },
    Tooltip: { defaultProps: { openDelay: 250, withArrow: true, multiline: true, maw: 340 } },
  },
});

export const cssVariablesResolver: CSSVariablesResolver = () => ({
  variables: {},
  light: { ...cssVariables(LIGHT), "--mantine-color-dimmed": "#59636e", "--mantine-color-placeholder": "#6a737d", "--mantine-color-orange-light-color": "#a33b06", "--mantine-color-orange-outline": "#b8420b", "--panel": "#ffffff", "--page": "#f5f7f9" },
  dark: { ...cssVariables(DARK), "--mantine-color-dimmed": "#9aa4b0", "--mantine-color-placeholder": "#8b95a1", "--panel": "#15191f", "--page": "#0f1215" },
});
