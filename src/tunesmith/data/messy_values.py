"""Values that fill the frames of the messy-text task; every fifth name is kept for the test set."""

# ruff: noqa: SIM905

FIRST_NAMES = (
    "Aaron Abebe Abigail Adaeze Adam Adele Adriana Agnes Ahmed Aisha Akira Alan Albert Alejandro Alexa Alfred Alice "
    "Alina Alisha Alma Alondra Amanda Amara Ameera Amelia Amina Amir Amy Ana Anabel Anastasia Anders Andre Andrea "
    "Andrew Angela Anika Anita Anna Annabel Anneke Anton Antonella Antonio Anya April Arabella Ariana Ariel Arjun "
    "Arnaud Arnold Arthur Arvid Asha Astrid Audrey Aurelio Aurora Ayana Azra Barbara Bartek Basil Beatrice Beatrix "
    "Beatriz Ben Benedict Benito Benjamin Bernard Bertha Beth Bianca Birgit Bjorn Blake Bogdan Boris Brandon Branka "
    "Brenda Brian Bridget Bruce Bruno Caleb Camila Camille Carl Carla Carlos Carlton Carmen Caroline Casper Cassandra "
    "Catalina Cecilia Celeste Cesar Charles Chiara Chidi Chinwe Chloe Chris Christina Christopher Claire Clara "
    "Clarence Claudia Clement Colin Cora Cornelia Craig Cristina Cyrus Damian Dana Danica Daniel Daphne Dario Darius "
    "David Dean Deborah Delia Demetrius Denis Derek Diana Diego Dietrich Dmitri Dominic Dominik Donald Dora Doris "
    "Dragan Dylan Ebony Edgar Edith Eduardo Edwin Eileen Ekaterina Eleanor Elena Eli Eliana Elias Elisa Elisabeth "
    "Ella Ellen Elliot Eloise Emeka Emil Emilia Emily Emma Enrique Enzo Eric Erica Ernesto Estelle Esther Eszter "
    "Ethan Eugene Eva Evangeline Evelyn Ezra Fabian Faisal Farid Fatima Federico Felicia Felix Fernanda Filip Fiona "
    "Flora Florence Francesca Francois Frank Franziska Frederick Freya Fumiko Gabriel Gemma George Gerald Gerardo "
    "Gianna Gina Giovanni Giselle Gloria Goran Grace Gregory Greta Guido Guillermo Gunnar Gustav Gwen Hamid Hana "
    "Hannah Harold Harriet Haruki Harvey Hassan Hazel Hector Heidi Helen Helga Henrik Herman Hiroshi Holly Hugo Ian "
    "Ibrahim Ida Ignacio Igor Ileana Ilona Ilse Imani Imogen Ines Ingrid Irene Irina Iris Isaac Isabel Ishaan Isidora "
    "Isla Ismael Isolde Israel Issa Ivan Ivana Ivy Jack Jacob Jadwiga Jaime Jakub Jamal Jamila Jana Janet Janine "
    "Jasmine Jason Javier Jean Jelena Jenny Jerome Jesse Joan Joanna Joaquin Jocelyn Joel Johanna John Jolene Jonas "
    "Jorge Josef Josephine Joshua Jovana Joy Juan Judith Julia Julian Juliet June Justine Kai Kamala Kamil Karen "
    "Karim Karina Karl Katarina Kate Katerina Katia Katinka Katja Katrin Katya Keiko Keisha Keith Kelly Kenji Kerstin "
    "Kevin Khalid Kira Kiran Klaus Kofi Konrad Krystyna Kurt Kwame Laila Lakshmi Lamar Lara Larissa Lars Laura Lauren "
    "Layla Leah Leandro Leila Lena Leo Leonard Leroy Leticia Liam Lidia Lila Lillian Linda Lisa Lloyd Lola Lorena "
    "Lorenzo Louis Lucas Lucia Luciana Lucy Ludwig Luis Luisa Luka Lukas Lydia Mabel Maddalena Magdalena Magnus Mai "
    "Malik Manuel Marc Marcela Marco Marcus Margaret Maria Mariam Mariana Marina Mario Marisol Mark Marlene Marlon "
    "Marta Martha Martin Mary Mateo Matilda Matteo Matthew Maurice Mauricio Max Maximilian Maya Megan Mehmet Melissa "
    "Mercedes Mia Michaela Miguel Mikael Mila Milan Milena Milos Minh Mirela Miriam Mohan Molly Monica Monique Morris "
    "Mustafa Nabil Nadia Nadine Nanami Naomi Natalie Natasha Nathan Neil Nerissa Niamh Nicolas Nikhil Nikita Nikolai "
    "Nils Nina Noah Noelle Nora Norman Octavia Odette Oksana Oleg Olga Oliver Olivia Omar Ophelia Orlando Oscar "
    "Osvaldo Otto Owen Pablo Pamela Paolo Pascal Patricia Patrick Paul Paula Pavel Pedro Penny Peter Petra Philip "
    "Phoebe Pierre Pilar Priya Quentin Quinton Rachel Rafael Rajesh Ralph Ramon Ramona Rashid Raul Ravi Raymond "
    "Rebecca Regina Renata Renee Rex Ricardo Richard Rita Robert Robin Rocio Roderick Rodrigo Roland Romeo Rosa "
    "Rosalind Rosario Ross Roxana Ruby Rudolf Rupert Ruth Ryan Sabine Sabrina Sakura Salma Salvador Sam Samantha "
    "Samir Sandra Sanjay Santiago Sara Saskia Savannah Sean Sebastian Selma Serena Sergio Seth Shauna Shirley Sidney "
    "Sigrid Silvia Simon Simone Sofia Solomon Sonja Soren Stefan Stella Stephen Steven Stuart Susan Sven Svetlana "
    "Sylvia Tabitha Tadeusz Takeshi Tamara Tara Tariq Tatiana Teresa Tessa Thelma Theo Thomas Tiana Tiberius Tim "
    "Timothy Tina Tobias Toby Tomas Travis Trevor Tristan Ulrich Uma Umar Ursula Valentina Valerie Vanessa Vasili "
    "Vera Veronica Victor Vikram Vincent Viola Virginia Vivian Vladimir Walter Wanda Warren Wayne Wendy Wilhelm Wilma "
    "Winston Xavier Xenia Yannick Yara Yasmin Yelena Yolanda Yosef Yuki Yusuf Yvonne Zachary Zainab Zara Zelda Zeynep "
    "Zoe Zofia Zoltan Zuzana"
).split()

LAST_NAMES = (
    "Abbott Abdi Acosta Adams Agarwal Aguilar Akhtar Albrecht Almeida Alvarez Amato Anand Andersen Aoki Archer Arslan "
    "Ashton Avery Ayala Bailey Baker Bakker Banerjee Barnes Barton Basu Bauer Beaumont Becker Bell Bennett Benson "
    "Berg Bergman Bianchi Bishop Blanco Bond Bosch Bowen Bowman Bradley Brady Brandt Brennan Brooks Brown Bryant "
    "Buchanan Bukowski Burke Burton Byrne Cabrera Calder Caldwell Campbell Cardoso Carlson Carter Caruso Castillo "
    "Castro Chan Chang Chaudhry Chavez Chen Chopra Clarke Cohen Collins Colombo Conti Cooper Correia Cortes Costa Cox "
    "Crawford Cruz Dahl Dalton Danso Das Davies Dawson Dejong Delgado Demir Diaz Dixon Dominguez Donnelly Doyle Drake "
    "Dubois Duncan Duran Edwards Eklund Elliott Ellis Engel Eriksen Espinosa Estrada Evans Fabre Farrell Fernandez "
    "Ferrari Fischer Fisher Fleming Flores Fontaine Ford Forsberg Foster Fox Franco Fraser Friedman Fuchs Fuentes "
    "Fujita Gallagher Galli Garcia Garner Gauthier Georgiou Gibson Gill Gomez Gonzalez Goodwin Graham Grant Gray "
    "Greco Green Griffin Gupta Gustafsson Haas Haddad Hall Halvorsen Hamilton Hansen Harper Harris Hartmann Hashimoto "
    "Hayes Heller Henderson Herrera Hill Hoffman Holland Holt Horvath Howard Huang Hughes Hunt Hussain Inoue Iqbal "
    "Ito Ivanov Iverson Jackson Jacobs Jain James Jankowski Jansen Jensen Jimenez Johansson Johnson Jones Jovanovic "
    "Kamara Kaplan Kapoor Kato Katz Kaur Kaya Keller Kennedy Khan Kim Kimura King Klein Knight Koch Kovacs Kowalski "
    "Kozlov Kramer Krause Kumar Lambert Lane Larsen Laurent Lawson Lee Lehmann Leone Levy Lewis Li Lin Lindgren "
    "Lombardi Long Lopez Lund Lynch Macdonald Mahmoud Maier Maldonado Manning Marchetti Marino Marsh Martinez Mason "
    "Mbeki Medina Mendoza Mensah Meyer Miller Mills Mitchell Molina Moore Morales Moreau Moretti Morgan Mueller "
    "Murphy Murray Nair Nakamura Nash Navarro Nelson Newman Nguyen Nielsen Nilsson Noble Novak Nowak Nunez Oconnor "
    "Okafor Oliveira Olsen Ortega Ortiz Osman Owens Ozturk Pacheco Palmer Papadopoulos Park Parker Patel Pavlov "
    "Pearson Pereira Perez Perry Petersen Peterson Petrov Pham Phillips Pierce Pope Popov Porter Powell Prasad "
    "Pretorius Price Quinn Quintana Rahman Ramirez Ramos Rao Rasmussen Reddy Reed Reyes Rhodes Ricci Richter Riley "
    "Rinaldi Rivera Roberts Robinson Rojas Romano Rose Rossi Roy Russell Russo Saito Salazar Sanchez Sanders Santana "
    "Santos Sato Schmidt Schneider Schulz Scott Serrano Sharma Sharpe Shaw Shimizu Silva Silverman Simmons Simpson "
    "Singh Sokolov Solberg Soto Spencer Stein Steiner Stevenson Stewart Stone Strand Sullivan Suzuki Svensson Swanson "
    "Szabo Tahir Takahashi Tanaka Taylor Teixeira Thompson Thornton Torres Tran Tucker Turner Underwood Valdez Vance "
    "Vargas Vasquez Vega Velasquez Vermeulen Vincenti Vogel Volkov Wagner Walker Wallace Walsh Wang Ward Watson Webb "
    "Weber Wells West Whitaker White Wilson Winters Wolf Wood Wright Yamada Yamamoto Yang Yilmaz Young Yusupov Zapata "
    "Zhang Zhou Ziegler Zielinski Zimmer"
).split()

# code: (spellings in the text, smallest, largest, items); a spelling of up to two letters may stick to the number
GOODS_UNITS = {
    "kg": (
        ("kg", "kilos", "kilograms", "kgs"),
        2,
        900,
        "rice flour apples coffee sugar cheese cement salmon tomatoes nails".split(),
    ),
    "g": (("g", "grams", "gr"), 50, 900, "saffron pepper silver tea yeast cinnamon".split()),
    "t": (("tonnes", "t", "metric tons"), 2, 80, "gravel sand wheat steel coal timber".split()),
    "l": (("litres", "liters", "l", "ltr"), 2, 900, "milk diesel paint wine juice vinegar soap honey".split()),
    "m": (("metres", "meters", "m", "mtr"), 3, 700, "cable rope fabric pipe carpet fence hose".split()),
    "box": (("boxes", "bxs"), 2, 300, "candles gloves tiles screws paper oranges masks".split()),
    "bag": (("bags",), 2, 300, "plaster compost rice charcoal potatoes feed".split()),
    "pallet": (("pallets",), 2, 60, "bricks tiles slates bottles cans".split()),
    "crate": (("crates",), 2, 90, "beer lemons peaches eggs cola".split()),
    "roll": (("rolls",), 2, 200, "tape foil wallpaper film felt".split()),
}
TIME_UNITS = {
    "h": (("hours", "hrs", "h"), 2, 60),
    "day": (("days",), 2, 30),
    "night": (("nights", "nts"), 2, 21),
    "week": (("weeks", "wks"), 2, 12),
}

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

# code: (sign before the number, words after the number, share)
CURRENCIES = {
    "USD": ("$", ("dollars", "USD", "US dollars"), 4),
    "EUR": ("€", ("euros", "EUR"), 4),
    "GBP": ("£", ("GBP",), 3),
    "CHF": ("CHF ", ("francs", "CHF"), 1),
}

MONTHS = "January February March April May June July August September October November December".split()

OPENERS = (
    "Hey,", "Hi team,", "FYI:", "Quick note:", "Ok so", "Fwd:", "Morning!", "Hi all,", "Hmm,", "Update:",
    "Note to self:", "Btw", "Hello,", "Sorry for the delay.", "As discussed:", "Re: your mail.", "Urgent!", "So,",
    "Well,", "Dear all,",
)  # fmt: skip
CLOSERS = (
    "Thanks!", "Thx", "Cheers", "Pls confirm.", "Ok?", "Sent from my phone", "Talk soon.", "Best", "Let me know.",
    "Ty!", "Call me.", "Bye", "That's all.", "Any questions?", "Ok bye", "More tomorrow.", "Kind regards", "!!!",
    "Have a nice day.", "...",
)  # fmt: skip
