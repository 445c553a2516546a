// To try the page with; short, so that the judge of the embedded task has room for them.

export const EXAMPLES = [
  {
    name: "coins, all right",
    problem: "ana has 64 coins. buys 21. doubles them. how many?",
    solution: "<chunk>buys 64+21=85\n</chunk><chunk>doubles 2*85=170\n\\boxed{170}</chunk>",
  },
  {
    name: "coins, a slip in the second step",
    problem: "ana has 64 coins. buys 21. doubles them. loses 20. how many?",
    solution: "<chunk>buys 64+21=85\n</chunk><chunk>doubles 2*85=160\n</chunk>" +
      "<chunk>loses 160-20=140\n\\boxed{140}</chunk>",
  },
  {
    name: "algebra, a root lost",
    problem: "Find all real $x$ with $x^2 = 3x$.",
    solution: "Divide both sides by $x$: $x = 3$.\n\nThe answer is $\\boxed{3}$.",
  },
  {
    name: "a series, right",
    problem: "What is $\\sum_{k=1}^{\\infty} 2^{-k}$?",
    solution: "Geometric, with ratio $\\frac{1}{2}$.\n\n" +
      "\\[S = \\frac{1/2}{1 - 1/2} = 1\\]\n\nIt is $\\boxed{1}$.",
  },
];
